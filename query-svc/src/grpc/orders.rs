//! `daybook.orders.v1.OrderQueryService`.

use daybook_domain::ids::OrderId;
use daybook_proto::orders::v1::order_query_service_server::OrderQueryService;
use daybook_proto::orders::v1::{
    GetCustomerTotalsRequest, GetCustomerTotalsResponse, GetOrderRequest, GetOrderResponse,
    ListCustomersRequest, ListCustomersResponse, ListOrdersRequest, ListOrdersResponse,
};
use daybook_read_model::order_details::OrderView;
use daybook_read_model::{customer_totals, order_list};
use daybook_service::ApiError;
use daybook_service::identity::{Principal, Scope};
use tonic::{Request, Response, Status};

use super::fields::{given, page_token};
use super::{Queries, wire};
use crate::freshness::{Demand, Tokens};
use crate::http::schema::{CUSTOMER_FIELDS, ORDER_SUMMARY_FIELDS};
use crate::reads::customers::ListCustomers;
use crate::reads::orders::ListOrders;
use crate::sparse::Fields;
use crate::violations::Violations;

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

    async fn list_customers(
        &self,
        request: Request<ListCustomersRequest>,
    ) -> Result<Response<ListCustomersResponse>, Status> {
        let caller = super::caller_with(Scope::OrdersRead, &request)?;
        Ok(Response::new(
            self.customers(&caller, request.into_inner()).await?,
        ))
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
        let mut violations = Violations::default();
        let order_id = violations.id::<OrderId>("/order_id", &request.order_id);
        let as_of = violations.as_of(request.as_of.as_ref());
        let demand = violations.freshness(request.freshness.as_ref(), self.reads.tokens(caller));
        let order_id = violations.finish(order_id)?;
        let order = match as_of {
            Some(as_of) => {
                self.reads
                    .order_as_of(caller, &order_id, as_of, demand.as_ref())
                    .await?
            }
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
        let (list, fields, demand) = list_orders(request, self.reads.tokens(caller))?;
        let page = self.reads.orders(caller, list, demand.as_ref()).await?;
        let show = |order| wire::order_summary(order, fields.as_ref());
        Ok(ListOrdersResponse {
            orders: page.data.items.iter().map(show).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }

    async fn customers(
        &self,
        caller: &Principal,
        request: ListCustomersRequest,
    ) -> Result<ListCustomersResponse, ApiError> {
        let (list, fields, demand) = list_customers(request, self.reads.tokens(caller))?;
        let page = self.reads.customers(caller, list, demand.as_ref()).await?;
        let show = |customer| wire::customer(customer, fields.as_ref());
        Ok(ListCustomersResponse {
            customers: page.data.items.iter().map(show).collect(),
            next_page_token: page.data.next_cursor.unwrap_or_default(),
            staleness: Some(wire::staleness(&page.staleness)),
        })
    }

    async fn customer_totals(
        &self,
        caller: &Principal,
        request: &GetCustomerTotalsRequest,
    ) -> Result<GetCustomerTotalsResponse, ApiError> {
        let mut violations = Violations::default();
        let customer_id = violations.customer_id(&request.customer_id);
        let demand = violations.freshness(request.freshness.as_ref(), self.reads.tokens(caller));
        let customer_id = violations.finish(customer_id)?;
        let totals = self
            .reads
            .customer_totals(caller, &customer_id, demand.as_ref())
            .await?;
        Ok(GetCustomerTotalsResponse {
            customer_id: customer_id.to_string(),
            totals: totals.data.totals.iter().map(wire::customer_total).collect(),
            staleness: Some(wire::staleness(&totals.staleness)),
        })
    }
}

fn list_orders(
    request: ListOrdersRequest,
    tokens: Tokens,
) -> Result<(ListOrders, Option<Fields>, Option<Demand>), ApiError> {
    let mut violations = Violations::default();
    let filter = order_list::Filter {
        statuses: violations.statuses(&request.statuses),
        customer_id: violations.customer_filter(&request.customer_id),
        currency: violations.currency_filter(&request.currency),
        placed_after: violations.time("/placed_after", request.placed_after.as_ref()),
        placed_before: violations.time("/placed_before", request.placed_before.as_ref()),
        search: violations.order_search(&request.q),
    };
    let sort = given(&request.order_by)
        .and_then(|text| violations.sort("/order_by", text, &order_list::ACCESS_PATHS));
    let expand = violations.expand(&request.expand);
    let limit = violations.page_size_with(request.page_size, expand);
    let fields = violations.read_mask(request.read_mask.as_ref(), &ORDER_SUMMARY_FIELDS);
    let demand = violations.freshness(request.freshness.as_ref(), tokens);
    let scan = violations.scan("/order_by", || filter.scan(sort.as_ref()));
    let list = ListOrders {
        scan: violations.finish(scan)?,
        filter,
        limit,
        cursor: page_token(request.page_token),
        expand,
    };
    let fields = fields.map(|fields| fields.with(expand.names()));
    Ok((list, fields, demand))
}

fn list_customers(
    request: ListCustomersRequest,
    tokens: Tokens,
) -> Result<(ListCustomers, Option<Fields>, Option<Demand>), ApiError> {
    let mut violations = Violations::default();
    let filter = customer_totals::Filter {
        currency: violations.currency_filter(&request.currency),
        search: violations.customer_search(&request.q),
    };
    let sort = given(&request.order_by)
        .and_then(|text| violations.sort("/order_by", text, &customer_totals::ACCESS_PATHS));
    let limit = violations.page_size(request.page_size);
    let fields = violations.read_mask(request.read_mask.as_ref(), &CUSTOMER_FIELDS);
    let demand = violations.freshness(request.freshness.as_ref(), tokens);
    let scan = violations.scan("/order_by", || filter.scan(sort.as_ref()));
    let list = ListCustomers {
        scan: violations.finish(scan)?,
        filter,
        limit,
        cursor: page_token(request.page_token),
    };
    Ok((list, fields, demand))
}
