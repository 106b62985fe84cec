//! `daybook.orders.v1.OrderQueryService`.

use daybook_domain::ids::OrderId;
use daybook_proto::orders::v1::order_query_service_server::OrderQueryService;
use daybook_proto::orders::v1::{
    GetCustomerTotalsRequest, GetCustomerTotalsResponse, GetOrderRequest, GetOrderResponse,
    ListOrdersRequest, ListOrdersResponse,
};
use daybook_read_model::order_details::OrderView;
use daybook_read_model::order_list::Filter;
use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope};
use tonic::{Request, Response, Status};

use super::fields::{Fields, page_token};
use super::{Queries, wire};
use crate::reads::list::ListOrders;

#[tonic::async_trait]
impl OrderQueryService for Queries {
    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let caller = super::caller_with(Scope::OrdersRead, &request)?;
        Ok(Response::new(self.order(&caller, request.get_ref()).await?))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let caller = super::caller_with(Scope::OrdersRead, &request)?;
        Ok(Response::new(self.orders(&caller, request.into_inner()).await?))
    }

    async fn get_customer_totals(
        &self,
        request: Request<GetCustomerTotalsRequest>,
    ) -> Result<Response<GetCustomerTotalsResponse>, Status> {
        let caller = super::caller_with(Scope::OrdersRead, &request)?;
        Ok(Response::new(
            self.customer_totals(&caller, request.get_ref()).await?,
        ))
    }
}

impl Queries {
    async fn order(
        &self,
        caller: &Principal,
        request: &GetOrderRequest,
    ) -> Result<GetOrderResponse, ApiError> {
        let mut fields = Fields::default();
        let order_id = fields.id::<OrderId>("/order_id", &request.order_id);
        let as_of = fields.as_of(request.as_of.as_ref());
        let demand = fields.demand(request.freshness.as_ref(), self.reads.tokens(caller));
        let order_id = fields.finish(order_id)?;
        let order = match as_of {
            Some(as_of) => self.reads.order_as_of(caller, &order_id, as_of).await?,
            None => self.reads.order(caller, &order_id, demand.as_ref()).await?,
        };
        let view: OrderView = serde_json::from_str(&order.data.json).map_err(ApiError::internal)?;
        Ok(GetOrderResponse {
            order: Some(wire::order(view)),
            staleness: Some(wire::staleness(&order.staleness)),
        })
    }

    async fn orders(
        &self,
        caller: &Principal,
        request: ListOrdersRequest,
    ) -> Result<ListOrdersResponse, ApiError> {
        let mut fields = Fields::default();
        let list = ListOrders {
            filter: Filter {
                statuses: fields.statuses(&request.statuses),
                customer_id: fields.customer_filter(&request.customer_id),
                placed_after: fields.time("/placed_after", request.placed_after.as_ref()),
                placed_before: fields.time("/placed_before", request.placed_before.as_ref()),
            },
            sort: fields.order_by(&request.order_by),
            limit: fields.page_size(request.page_size),
            cursor: page_token(request.page_token),
        };
        let demand = fields.demand(request.freshness.as_ref(), self.reads.tokens(caller));
        let list = fields.finish(Some(list))?;
        let page = self.reads.orders(caller, list, demand.as_ref()).await?;
        Ok(ListOrdersResponse {
            orders: page.data.items.iter().map(wire::order_summary).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }

    async fn customer_totals(
        &self,
        caller: &Principal,
        request: &GetCustomerTotalsRequest,
    ) -> Result<GetCustomerTotalsResponse, ApiError> {
        let mut fields = Fields::default();
        let customer_id = fields.customer_id(&request.customer_id);
        let demand = fields.demand(request.freshness.as_ref(), self.reads.tokens(caller));
        let customer_id = fields.finish(customer_id)?;
        let totals = self
            .reads
            .customer_totals(caller, &customer_id, demand.as_ref())
            .await?;
        Ok(GetCustomerTotalsResponse {
            customer_id: customer_id.to_string(),
            totals: totals.data.iter().map(wire::customer_total).collect(),
            staleness: Some(wire::staleness(&totals.staleness)),
        })
    }
}
